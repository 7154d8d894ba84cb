"use strict";
// The address that `mainspring up` prints carries the token behind '#', which browsers never send.
const token = decodeURIComponent(location.hash.slice(1));
if (token) {
  history.replaceState(null, "", location.pathname);
  document.getElementById("token").value = token;
  document.querySelector("form").submit();
}
