"""Livevalue keeps the worth of every user current while events arrive."""
