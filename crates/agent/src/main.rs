//! The agent as process 1 of a guest. See [`favo_agent::boot`].

fn main() {
    favo_agent::boot::main()
}
