"""Runs: ``run_folder`` describes their files, ``build`` creates the objects of a config, ``loading`` loads trained models."""
