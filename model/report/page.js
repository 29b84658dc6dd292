"use strict";
// Unpacks the meshes that model/report/viewer.py packed and draws those of one shape side by side, all turned together.
// The camera is that of model/report/render.py: orthographic, +z up, azimuth and elevation in degrees.

const scenes = JSON.parse(document.getElementById("scenes").textContent);
const viewer = document.getElementById("viewer");
const canvas = viewer.querySelector("canvas");
const chooser = viewer.querySelector("select");
const labels = viewer.querySelector(".labels");
const START = {azimuth: -50, elevation: 28, zoom: 1};
const FIXED_POINT = Number(viewer.dataset.fixedPoint);

const VERTEX_SHADER = `#version 300 es
uniform vec3 right, up, forward, center;
uniform float scale;
in vec3 vertex;
out vec3 seen;
void main() {
  vec3 moved = vertex / ${FIXED_POINT.toFixed(1)} - center;
  seen = vec3(dot(moved, right), dot(moved, up), -dot(moved, forward));
  gl_Position = vec4(seen.xy * scale, -seen.z / 8.0, 1.0);
}`;
const FRAGMENT_SHADER = `#version 300 es
precision highp float;
in vec3 seen;
out vec4 colour;
float soft(float cosine) { float wrapped = max(cosine * 0.7 + 0.3, 0.0); return wrapped * wrapped; }
void main() {
  vec3 normal = normalize(cross(dFdx(seen), dFdy(seen)));  // of the face; towards the eye, whatever its winding
  float rim = 1.0 - normal.z;
  float light = 0.32 + 0.64 * soft(dot(normal, normalize(vec3(-0.55, 0.75, 0.65))))
    + 0.22 * soft(dot(normal, normalize(vec3(0.9, 0.1, 0.5)))) - 0.2 * rim * rim * rim;
  colour = vec4(pow(clamp(vec3(0.60, 0.70, 0.84) * light, 0.0, 1.0), vec3(1.0 / 1.2)), 1.0);
}`;

async function unpack(text, Integers, length) {
  const deflated = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const values = new Integers(length);
  let value = 0;
  for (let i = 0; i < length; i++) {
    for (let byte = 0; byte < Integers.BYTES_PER_ELEMENT; byte++) value += planes[byte * length + i] << (8 * byte);
    values[i] = value |= 0;  // wraps around, as the differences did
  }
  return values;
}

async function load(gl, mesh) {
  const flat = await unpack(mesh.vertices, Int16Array, 3 * mesh.num_vertices);
  const vertices = flat.map((_, i) => flat[(i % 3) * mesh.num_vertices + Math.floor(i / 3)]);
  const faces = await unpack(mesh.faces, Int32Array, 3 * mesh.num_faces);
  const array = gl.createVertexArray();
  gl.bindVertexArray(array);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, vertices, gl.STATIC_DRAW);
  gl.enableVertexAttribArray(0);
  gl.vertexAttribPointer(0, 3, gl.SHORT, false, 0, 0);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);
  return {array, length: faces.length};
}

function link(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX_SHADER], [gl.FRAGMENT_SHADER, FRAGMENT_SHADER]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.bindAttribLocation(program, 0, "vertex");
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}

function axes({azimuth, elevation}) {
  const [a, e] = [azimuth, elevation].map((degrees) => degrees * Math.PI / 180);
  const [ca, sa, ce, se] = [Math.cos(a), Math.sin(a), Math.cos(e), Math.sin(e)];
  return {right: [-sa, ca, 0], up: [-se * ca, -se * sa, ce], forward: [-ce * ca, -ce * sa, -se]};
}

function start(gl) {
  const program = link(gl);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const loaded = new Map();  // scene -> promise of its meshes
  let view = {...START}, shown = null, asked = false;

  function draw() {
    asked = false;
    const density = Math.min(window.devicePixelRatio || 1, 2);
    const columns = getComputedStyle(labels).gridTemplateColumns.split(" ").length;
    const size = Math.floor(viewer.clientWidth / columns * density);  // pixels of one square
    const rows = Math.ceil(shown.meshes.length / columns);
    const strip = Math.ceil(labels.firstElementChild.firstElementChild.offsetHeight * density);  // for the label
    canvas.width = size * columns;
    canvas.height = (size + strip) * rows;
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(1, 1, 1, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.useProgram(program);
    for (const [name, axis] of Object.entries(axes(view))) gl.uniform3fv(uniform(name), axis);
    gl.uniform3fv(uniform("center"), shown.scene.center);
    gl.uniform1f(uniform("scale"), view.zoom / (1.04 * shown.scene.radius));
    shown.meshes.forEach((mesh, i) => {
      const [x, y] = [(i % columns) * size, (rows - 1 - Math.floor(i / columns)) * (size + strip)];
      gl.viewport(x, y, size, size);
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(x, y, size, size);
      gl.bindVertexArray(mesh.array);
      gl.drawElements(gl.TRIANGLES, mesh.length, gl.UNSIGNED_INT, 0);
      gl.disable(gl.SCISSOR_TEST);
    });
    viewer.dataset.drawn = shown.scene.name;
  }
  function redraw(change = {}) {
    Object.assign(view, change);
    view.elevation = Math.max(-90, Math.min(90, view.elevation));
    view.zoom = Math.max(0.3, Math.min(8, view.zoom));
    if (shown && !asked) { asked = true; requestAnimationFrame(draw); }
  }
  async function choose() {
    const scene = scenes[chooser.selectedIndex];
    if (!loaded.has(scene)) loaded.set(scene, Promise.all(scene.meshes.map((mesh) => load(gl, mesh))));
    const meshes = await loaded.get(scene);
    if (scene !== scenes[chooser.selectedIndex]) return;  // another was chosen meanwhile
    shown = {scene, meshes};
    scene.meshes.forEach((mesh, i) => {
      labels.children[i].querySelector("small").textContent =
        `${mesh.num_faces.toLocaleString("en")} faces${mesh.simplified ? ", simplified" : ""}`;
    });
    redraw(START);
  }

  const pointers = new Map();
  const spread = () => { const [p, q] = pointers.values(); return Math.hypot(p.x - q.x, p.y - q.y); };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, {x: event.clientX, y: event.clientY});
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 ? spread() : 0;
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    Object.assign(last, {x: event.clientX, y: event.clientY});
    if (pointers.size === 2) redraw({zoom: view.zoom * spread() / before});
    else redraw({azimuth: view.azimuth - dx / 2, elevation: view.elevation + dy / 2});
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;  // the page scrolls; pinching on a touchpad comes as ctrl and wheel
    event.preventDefault();
    redraw({zoom: view.zoom * Math.exp(-event.deltaY / 200)});
  }, {passive: false});
  canvas.addEventListener("dblclick", () => redraw(START));
  canvas.addEventListener("keydown", (event) => {
    const change = {
      ArrowLeft: {azimuth: view.azimuth - 10}, ArrowRight: {azimuth: view.azimuth + 10},
      ArrowUp: {elevation: view.elevation + 10}, ArrowDown: {elevation: view.elevation - 10},
      "+": {zoom: view.zoom * 1.2}, "-": {zoom: view.zoom / 1.2}, Home: START,
    }[event.key];
    if (change) { event.preventDefault(); redraw(change); }
  });
  new ResizeObserver(() => redraw()).observe(viewer);
  chooser.addEventListener("change", choose);
  return choose();
}

// preserveDrawingBuffer: so that a saved or printed page shows the shapes
const gl = canvas.getContext("webgl2", {antialias: true, preserveDrawingBuffer: true});
if (gl && window.DecompressionStream) {
  viewer.hidden = false;
  start(gl).then(() => { document.getElementById("no-3d").hidden = true; });
}
