"""A small cast for the tests: the shipped settings with few people, views and frames."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from synthetic import settings as schema
from synthetic.settings import Settings

PARAMS = Path(schema.__file__).with_name("params.yaml")


@pytest.fixture
def content() -> dict[str, Any]:
    """The content of a small settings file, to be changed by a test."""
    content: dict[str, Any] = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    content["oumvlp"] |= {
        "training_subjects": 3,
        "test_subjects": 2,
        "views": ["000", "090", "210"],
        "recording": {"frame_rate": 18.0, "fewest_frames": 4, "most_frames": 6},
    }
    content["casia_e"] |= {
        "training_subjects": 2,
        "validation_subjects": 1,
        "test_subjects": 2,
        "views": ["000", "090"],
        "recording": {"frame_rate": 22.0, "fewest_frames": 4, "most_frames": 6},
    }
    return content


@pytest.fixture
def settings(content: dict[str, Any]) -> Settings:
    """Small settings as the code gets them."""
    return Settings.model_validate(content)


@pytest.fixture
def params_file(content: dict[str, Any], tmp_path: Path) -> Path:
    """A small settings file."""
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
