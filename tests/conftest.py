from jaxtyping import install_import_hook

install_import_hook("anyres", "beartype.beartype")
