"""What everything else uses: errors, boxes, image files, random choices, progress."""
