"""The verbs of `swjax`, one file each."""
