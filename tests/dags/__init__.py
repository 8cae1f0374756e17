"""Tests of the Airflow edge: the DAG file, its runs, and the closed Airflow they happen in."""
