"""Clips for training: captioned digits made on the fly or by TFDS, folders of videos and of images, prepared records,
TFDS video sets, and the grain pipeline that batches any of them with exact resume.

Every data set is a config (pure data) with a source of the same name plus `Source` (`VideoFolder`,
`VideoFolderSource`) that keeps the contract of `source.RandomAccessSource`; `opening` goes from one to the other.
"""
