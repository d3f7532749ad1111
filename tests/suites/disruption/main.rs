//! Load, outages and the installation guide. Each test owns all that it starts.

mod installation;
mod mesh_in_trouble;
mod under_load;
