"""What models are judged on: readers of the layouts that people have (one file each), and what every one of them hands over."""
