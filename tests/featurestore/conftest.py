"""Hypothesis without a time limit per example: on a shared machine it only tells of the load."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
