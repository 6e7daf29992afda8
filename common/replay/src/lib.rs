//! Policies driven over recorded use, and what would have happened. Pure.
