//! What a client asks for, whatever API it speaks: each API's request becomes one of these, and one of these a
//! [`Job`](crate::job::Job).

pub(crate) mod chat;
pub(crate) mod fields;
pub(crate) mod format;
pub(crate) mod input;
pub(crate) mod messages;
pub(crate) mod thinking;
pub(crate) mod tools;
