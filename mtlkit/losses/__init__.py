"""Losses of a task: one file each. They see logits and labels of rows, and know no model."""
