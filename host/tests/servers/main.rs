//! Tests of the stores on servers, with real servers that the tests start.
#![cfg(target_os = "linux")]

mod cases;
mod certificate;
#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod proxy;
mod running;
#[path = "../common/store_calls.rs"]
mod store_calls;

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
