"""Images in files: finding, checking and decoding them.

- `scan` reads all folders below one, `left_out` names the entries that it leaves out, `scan_cache` stores the result
  between runs, `listing` makes the sorted list of image files of it.
- `part_names` recognizes folder names such as train2017, `readings` decides which folders are parts, `levels` groups
  folders by their place, `layout` gives each part its images and labels.
- `decode` reads one image (`png` and `tiff` read the kinds that Pillow gets wrong, `depth` brings deep samples to 8
  bits, `foreign` names other formats), `headers` reads its size alone, `unreadable` finds files that cannot be read.
- `shards` reads and writes the tar files of a packed data set.
- `progress` shows a bar while files are read.
"""
