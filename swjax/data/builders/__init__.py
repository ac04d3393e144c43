"""Builders of data sets: from an original release to records of encoded clips, with tensorflow_datasets."""
