"""Run folders, reports and pictures."""
