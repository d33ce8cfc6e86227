//! Every function beside a plain twin that works on strings and sets.

mod behaviour;
mod properties;
mod twins;
