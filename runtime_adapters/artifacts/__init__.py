"""How a model's files get from where they are stored onto this pod's disk, once, whole and unchanged.

`locations` says what a URI means and whom it concerns, `credentials` who may read it, `sources` reads it, `download`
turns what is read into verified content, `unpack` opens archives, `ledger` decides what the disk holds, `disk_tier`
carries that out in a `disk_directory`, `disk_records` is what it writes down, `fetching` is one fetch, `forms` is what
adapters make of artifacts, and `fetch` is the pod's door to all of it.
"""
