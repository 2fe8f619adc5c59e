"""Images in files: finding, checking and decoding them.

`scan` walks a folder, `listing` turns the walk into names and labels (`scan_cache` remembers it between runs), `layout`
decides which folders are classes and which are parts, `decode` reads one image (`png` and `tiff` read the kinds that
Pillow gets wrong, `depth` brings deep samples to 8 bits, `foreign` names other formats), `unreadable` counts the files
that cannot be read, `shards` reads the tar files of a packed data set, `progress` shows a bar while files are listed.
"""
