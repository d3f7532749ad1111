mod layers;
mod log_events;
