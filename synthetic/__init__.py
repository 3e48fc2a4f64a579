"""Rendered pedestrians in the release formats of OUMVLP and CASIA-E, so that the pipeline runs
without the licences. `python -m synthetic --help` writes them; see `params.yaml` for what they are.
"""
