mod log_events;
