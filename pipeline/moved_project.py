"""Artifacts of a project that was moved or copied: MLflow's database is told where they are now."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

ARTIFACT_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database that say where artifacts lie."""


def follow_project(database: Path) -> None:
    """Note where artifacts lie now, if the project was moved or copied since the last run.

    MLflow keeps whole paths, and goes on writing to the old ones. An experiment that has its
    artifacts in a place of its own stays: none of them are here.
    """
    here = (database.parent / "mlartifacts").as_uri()
    places = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
    runs = "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) = ?"
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        for (before,) in store.execute(places, ["file:///%/mlartifacts"]).fetchall():
            noted = store.execute(runs, [len(before) + 1, f"{before}/"]).fetchall()
            came_along = (
                (database.parent / "mlartifacts" / uri.removeprefix(f"{before}/")).exists()
                for (uri,) in noted
            )
            if before == here or (noted and not any(came_along)):
                continue
            for table, column in ARTIFACT_PLACES:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    [here, len(before) + 1, before, len(before) + 1, f"{before}/"],
                )
            sys.stderr.write(f"{database.name} followed the project: artifacts were in {before}\n")
