"""Broken and odd picture files, made by code: what each is to come out as."""
