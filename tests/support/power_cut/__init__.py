"""Power cuts: the file system calls of a real process, and the folders that a power cut at any of them may leave."""
