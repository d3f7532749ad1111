//! The Cedar schema: a fixed base, and four records made of what the documents declare.
