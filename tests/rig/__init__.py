"""What proves the promises: simulated disks, children to kill, disks to cut off, and what they are judged by."""
