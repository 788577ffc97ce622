//! Tests of the stores on servers, with real servers that the tests start.
#![cfg(target_os = "linux")]

mod cases;
mod certificate;
#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod proxy;
mod running;

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
