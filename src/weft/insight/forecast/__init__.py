"""Forecast of a series: weighted experts, with an interval that learns from its own errors."""
