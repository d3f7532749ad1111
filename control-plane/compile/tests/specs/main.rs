//! Specifications of the compiler.

mod addresses;
mod documentation;
mod mesh;
mod problems;
