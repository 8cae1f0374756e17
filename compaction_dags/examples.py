"""Transforms to start from: `[transform] function = "compaction_dags.examples:clean_and_filter"`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

LANGUAGES = ("en",)
"""What `clean_and_filter` keeps, as X's `lang` says."""


def clean_and_filter(tweets: "pd.DataFrame") -> "pd.DataFrame":
    """Keep English tweets that are no retweets, with their text on one line and without control characters.

    Gets the columns of the table `tweets` (schemas/README.md) as pandas ArrowDtype and returns the rows to keep, in the
    same columns. Dropped rows are counted as filtered. `text_sent` stays as X sent it.
    """
    wanted = tweets["lang"].isin(LANGUAGES) & tweets["retweeted_id"].isna()
    kept = tweets[wanted].copy()
    kept["text"] = (
        kept["text"]
        .str.replace(r"[\x00-\x1f\x7f]+", " ", regex=True)
        .str.replace(r" {2,}", " ", regex=True)
        .str.strip()
    )
    return kept
