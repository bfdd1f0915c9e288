"""The descriptions of a prepared TFDS set, checked before TFDS reads them.

TFDS imports the module that `features.json` names for a feature, and opens the files that `dataset_info.json` names: a
set from elsewhere could run any code and read any file. Only TFDS's own features are permitted here, and files of the
set's own folder.
"""

import json
import re
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError

MAX_DESCRIPTION_BYTES = 2**24
NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)?(:[0-9*]+\.[0-9*]+\.[0-9*]+)?")
_MODULES = "tensorflow_datasets.core.features."
FEATURES = frozenset(_MODULES + name for name in (
    "audio_feature.Audio", "bounding_boxes.BBoxFeature", "class_label_feature.ClassLabel", "dataset_feature.Dataset",
    "feature.Tensor", "features_dict.FeaturesDict", "image_feature.Image", "labeled_image.LabeledImage",
    "scalar.Scalar", "sequence_feature.Sequence", "tensor_feature.Tensor", "text_feature.Text",
    "translation_feature.Translation", "translation_feature.TranslationVariableLanguages", "video_feature.Video"))
# The fields of a description that name code, of which TFDS takes both spellings.
_CLASSES = ("type", "pythonClassName", "python_class_name")
_FILES = ("filepathTemplate", "filepath_template")


def check_descriptions(name: str, data_dir: str | None) -> None:
    """Raises `UserError` for a set whose name or whose descriptions, in any of its versions, TFDS must not see."""
    if not NAME.fullmatch(name):
        raise UserError(f"TFDSVideo.name={name!r}; permitted: NAME, NAME/CONFIG or NAME/CONFIG:VERSION, on disk")
    from tensorflow_datasets.core.utils import file_utils

    for folder in file_utils.list_data_dirs(data_dir):
        root = Path(str(folder)).expanduser() / re.split("[/:]", name)[0]
        for depth in ("", "*/", "*/*/"):
            for path in (*root.glob(f"{depth}features.json"), *root.glob(f"{depth}dataset_info.json")):
                _check(path)


def _check(path: Path) -> None:
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise UserError(f"{path} has more than {MAX_DESCRIPTION_BYTES} bytes; permitted: a description by TFDS")
        description = json.loads(path.read_text(encoding="utf-8"))
        _visit(path, description, features=path.name == "features.json")
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); permitted: a description by TFDS") from error


def _visit(path: Path, value: Any, features: bool, names: bool = False) -> None:
    """Checks all that is below a value; `names`: its keys are names of features, which may be called `type`."""
    if isinstance(value, list):
        for item in value:
            _visit(path, item, features)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if names and (".." in key or re.search(r"[/\\\0]", key)):
            raise UserError(f"{path}: feature {key!r}; permitted: names without / and ..")
        called_so = names and isinstance(item, dict)  # a feature of that name
        if features and key in _CLASSES and not called_so and not (isinstance(item, str) and item in FEATURES):
            raise UserError(f"{path}: feature class {item!r}; permitted: {', '.join(sorted(FEATURES))}")
        if key in _FILES and not (isinstance(item, str) and re.fullmatch(r"[^/\\\0]*", item)):
            raise UserError(f"{path}: {key}={item!r}; permitted: files of the same folder")
        _visit(path, item, features, names=not names and key == "features")
