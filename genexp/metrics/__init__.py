"""Metrics. weights/ holds the classifiers whose features compare generated images with real ones."""
