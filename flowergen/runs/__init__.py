"""Runs: ``run_folder`` knows their files, ``build`` makes the objects of a config, ``loading`` loads trained models."""
