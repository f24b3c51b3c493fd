"""How a model's files get from where they are stored onto this pod's disk, once, whole and unchanged.

`locations` says what a URI means, `source_policy` what the operator allows, `credentials` who may read it and with
which of the `storage_keys` (`key_entries` parses them). `sources` chooses who reads it: `file_source`, `http_source`,
`bucket_source`, `hub_source`, `image_source` or `git_source`, each of which makes a `listing`. `download` turns what is
read into verified content, `unpack` opens archives, `layers` puts images together, `ledger` decides what the disk
holds, `disk_tier` carries that out in a `disk_directory`, `disk_records` is what it writes down, `fetching` is one
fetch, `forms` is what adapters make of artifacts, and `fetch` is the pod's door to all of it.
"""
