"""What distill tells of itself: rows put aside while shards are made, and in the finish `report.json` and its page."""
