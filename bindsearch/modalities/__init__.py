"""Modalities, one file each: suffixes, decode, preprocess."""
