"""How a model's files get from where they are stored onto this pod's disk, once, whole and unchanged.

`locations` says what a URI means and whom it concerns, `credentials` who may read it, `sources` reads it, `download`
turns what is read into verified content, `unpack` opens archives, `ledger` decides what the disk holds, `disk_tier`
carries that out, and `fetch` is the pod's door to all of it.
"""
