"""Clips for training: captioned digits made on the fly or by TFDS, folders of videos and of images, image and caption
pairs in tar files, prepared records, TFDS video sets, the sets that papers report on, text embeddings joined to any of
them, and the grain pipeline that batches them with exact resume.

Every data set is a config (pure data) with a source, such as `VideoFolder` with `VideoFolderSource`, that keeps the
contract of `source.RandomAccessSource`; `opening` goes from one to the other.
"""
