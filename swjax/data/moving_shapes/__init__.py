"""Moving Shapes: an embedded data set of synthetic videos whose captions can be checked exactly.

`scene` draws what happens, `narration` decides when it is told, `grammar` writes and reads captions, `drawing` and
`render` make the videos, `prepare` makes the data set on disk, `train_tokenizer` makes the tokenizer shipped beside.
"""
