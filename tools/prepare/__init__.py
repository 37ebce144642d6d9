"""Convert the official files of published data sets into the CSVs of this project."""

from .shared import write_csv

__all__ = ["write_csv"]
