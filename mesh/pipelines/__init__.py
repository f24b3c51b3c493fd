"""Graphs of models that answer under one name."""
