"""Several readers of the cases that a model read: a blinded study to hand out, and what their readings come to."""
