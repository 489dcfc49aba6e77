"""What runs by itself: schedules, sensors, alerts."""
