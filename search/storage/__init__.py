"""Where the truth lies, on disks and servers. Decides nothing."""
