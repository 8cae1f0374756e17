"""Program two: Airflow DAG files on top, the work in compaction/, which never imports Airflow."""
