"""Imperfect devices: noise, mismatch, few levels and limits, around any system or rule."""

from bpeq.imperfections._imperfect import imperfect

__all__ = ["imperfect"]
