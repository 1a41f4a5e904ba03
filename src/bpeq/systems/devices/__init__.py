"""Imperfect devices: noise, mismatch, few levels and limits, around any system or rule."""

from bpeq.systems.devices._imperfect import imperfect

__all__ = ["imperfect"]
