//! Sockets that children use, over loopback.

use std::{mem, net::UdpSocket};

use super::{
    shared::Shared,
    workload::{self, check},
};

/// A version of the internet protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// An address as the kernel takes it, with its size.
struct Address {
    storage: libc::sockaddr_storage,
    size: libc::socklen_t,
}

impl Family {
    /// Whether its loopback address can be used here.
    pub(crate) fn is_there(self) -> bool {
        let address = match self {
            Self::V4 => "127.0.0.1:0",
            Self::V6 => "[::1]:0",
        };
        UdpSocket::bind(address).is_ok()
    }

    fn domain(self) -> libc::c_int {
        match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        }
    }

    fn loopback(self, port: u16) -> Address {
        // SAFETY: zeros are a valid address, and the storage has room and alignment for either.
        unsafe {
            let mut storage: libc::sockaddr_storage = mem::zeroed();
            storage.ss_family = self.domain() as libc::sa_family_t;
            let size = match self {
                Self::V4 => {
                    let address = (&raw mut storage).cast::<libc::sockaddr_in>();
                    (*address).sin_port = port.to_be();
                    (*address).sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
                    size_of::<libc::sockaddr_in>()
                }
                Self::V6 => {
                    let address = (&raw mut storage).cast::<libc::sockaddr_in6>();
                    (*address).sin6_port = port.to_be();
                    (*address).sin6_addr.s6_addr[15] = 1;
                    size_of::<libc::sockaddr_in6>()
                }
            };
            Address { storage, size: size as libc::socklen_t }
        }
    }
}

impl Address {
    fn port(&self) -> u16 {
        // The port is at the same place in both.
        // SAFETY: the storage is larger and aligned.
        u16::from_be(unsafe { (*(&raw const self.storage).cast::<libc::sockaddr_in>()).sin_port })
    }
}

/// A socket of a child. Closed by the end of the child at the latest.
#[derive(Clone, Copy)]
struct Socket(libc::c_int);

impl Socket {
    fn new(family: Family, kind: libc::c_int) -> Self {
        // SAFETY: touches no memory.
        let socket = unsafe { libc::socket(family.domain(), kind, 0) };
        check(socket >= 0);
        Self(socket)
    }

    /// Binds it to any port and returns where it is then.
    fn bind(self, family: Family) -> Address {
        let mut address = family.loopback(0);
        // SAFETY: the address lives as long as the calls, with its size passed.
        unsafe {
            let named = (&raw mut address.storage).cast::<libc::sockaddr>();
            check(libc::bind(self.0, named, address.size) == 0);
            check(libc::getsockname(self.0, named, &raw mut address.size) == 0);
        }
        address
    }

    fn listen(self, n_waiting_max: libc::c_int) {
        // SAFETY: touches no memory.
        check(unsafe { libc::listen(self.0, n_waiting_max) } == 0);
    }

    /// Whether it is connected at once.
    fn connect(self, address: &Address) -> bool {
        let named = (&raw const address.storage).cast::<libc::sockaddr>();
        // SAFETY: the address lives as long as the call, with its size passed.
        unsafe { libc::connect(self.0, named, address.size) == 0 }
    }

    fn accept(self) -> Self {
        // SAFETY: no address is asked for.
        let accepted = unsafe { libc::accept(self.0, std::ptr::null_mut(), std::ptr::null_mut()) };
        check(accepted >= 0);
        Self(accepted)
    }

    fn send(self, bytes: &[u8]) {
        // SAFETY: the buffer is as long as is said.
        let n_sent = unsafe { libc::send(self.0, bytes.as_ptr().cast(), bytes.len(), 0) };
        check(n_sent == bytes.len() as isize);
    }

    /// Number of bytes received; negative when there are none and it does not wait.
    fn receive(self) -> isize {
        let mut buffer = [0_u8; 2048];
        // SAFETY: the buffer is as long as is said.
        unsafe { libc::recv(self.0, buffer.as_mut_ptr().cast(), buffer.len(), 0) }
    }

    fn set_number(self, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value lives as long as the call, with its size passed.
        let set =
            unsafe { libc::setsockopt(self.0, level, option, (&raw const value).cast(), size) };
        check(set == 0);
    }

    fn tcp_info(self) -> libc::tcp_info {
        // SAFETY: zeros are a valid `tcp_info`, whose size is passed.
        unsafe {
            let mut info: libc::tcp_info = mem::zeroed();
            let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
            let to = (&raw mut info).cast();
            let got =
                libc::getsockopt(self.0, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut size);
            check(got == 0);
            info
        }
    }

    fn close(self) {
        // SAFETY: nobody else has this descriptor.
        check(unsafe { libc::close(self.0) } == 0);
    }
}

/// Accepts connections, each of which brings a byte, after telling its port; for a child.
pub(crate) fn serve(family: Family, n_connections: u64, port: Shared) {
    let listener = Socket::new(family, libc::SOCK_STREAM);
    let address = listener.bind(family);
    listener.listen(8);
    port.set(0, u64::from(address.port()));
    for _ in 0..n_connections {
        let connection = listener.accept();
        check(connection.receive() == 1);
        connection.close();
    }
}

/// Opens connections one after the other to the port that is told; for a child.
pub(crate) fn visit(family: Family, n_connections: u64, port: Shared) {
    let address = family.loopback(port.wait(0) as u16);
    for _ in 0..n_connections {
        let connection = Socket::new(family, libc::SOCK_STREAM);
        check(connection.connect(&address));
        connection.send(&[7]);
        // Until the other end is closed.
        check(connection.receive() == 0);
        connection.close();
    }
}

/// Opens a connection where no more fit, and tells how often that was tried again; for a child.
pub(crate) fn knock_at_a_full_queue(told: Shared) {
    /// The first repetition comes after a second.
    const N_LOOKS: u32 = 20_000;
    let listener = Socket::new(Family::V4, libc::SOCK_STREAM);
    let address = listener.bind(Family::V4);
    listener.listen(0);
    let first = Socket::new(Family::V4, libc::SOCK_STREAM);
    check(first.connect(&address));
    let second = Socket::new(Family::V4, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    check(!second.connect(&address));
    for _ in 0..N_LOOKS {
        if second.tcp_info().tcpi_total_retrans > 0 {
            break;
        }
        workload::sleep_briefly();
    }
    told.set(0, u64::from(second.tcp_info().tcpi_total_retrans));
}

/// Sends bytes to and fro over one connection, and tells its smoothed round-trip time in
/// microseconds; for a child.
pub(crate) fn talk_to_oneself(n_rounds: u64, told: Shared) {
    let listener = Socket::new(Family::V4, libc::SOCK_STREAM);
    let address = listener.bind(Family::V4);
    listener.listen(1);
    let near = Socket::new(Family::V4, libc::SOCK_STREAM);
    check(near.connect(&address));
    let far = listener.accept();
    for _ in 0..n_rounds {
        near.send(&[7]);
        check(far.receive() == 1);
        far.send(&[7]);
        check(near.receive() == 1);
    }
    told.set(0, u64::from(near.tcp_info().tcpi_rtt));
}

/// Sends datagrams to its own socket and only then takes in those that are there, and tells how
/// many these are; for a child.
pub(crate) fn flood_oneself(family: Family, n_datagrams: u64, payload: &[u8], told: Shared) {
    let socket = Socket::new(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK);
    socket.set_number(libc::SOL_SOCKET, libc::SO_RCVBUF, 16 << 10);
    let address = socket.bind(family);
    check(socket.connect(&address));
    for _ in 0..n_datagrams {
        socket.send(payload);
    }
    // What is on its way arrives.
    for _ in 0..20 {
        workload::sleep_briefly();
    }
    let mut n_received = 0;
    while socket.receive() > 0 {
        n_received += 1;
    }
    told.set(0, n_received);
}
