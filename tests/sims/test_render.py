"""Pictures, labels and camera matrices agree with each other."""

import mujoco
import numpy as np
import pytest

from etcvla.etc.annotation import project
from etcvla.sims.conditions import Orbit
from etcvla.sims.oracle import mask_box
from etcvla.sims.render import Renderer, camera_matrix, coarsen_mesh

SIZE = 64
XML = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="fixed" pos="1 -1 1" xyaxes="1 1 0 -.5 .5 1" fovy="50"/>
    <geom name="ball" type="sphere" size=".05" pos=".1 .05 .1"/>
    <geom name="far" type="box" size=".05 .05 .05" pos="-.3 .2 0"/>
    <site name="marker" size=".04" pos="-.1 -.1 .2"/>
  </worldbody>
</mujoco>
"""
ORBIT = Orbit(lookat=(0, 0, 0.1), distance=1.2, azimuth=150, elevation=-30)


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(XML)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    view = Renderer(model, SIZE)
    yield model, data, view
    view.close()


@pytest.mark.parametrize("camera", [ORBIT, "fixed"])
def test_points_project_to_where_they_are_drawn(scene, camera):
    model, data, view = scene
    labels, matrix = view.labels(data, camera), camera_matrix(model, data, camera)
    places = {
        model.geom("ball").id: data.geom("ball").xpos,
        model.geom("far").id: data.geom("far").xpos,
        model.ngeom + model.site("marker").id: data.site("marker").xpos,
    }
    for label, place in places.items():
        box = mask_box(labels == label)
        centre = (box[:2] + box[2:]) / 2
        np.testing.assert_allclose(project(matrix, place), centre, atol=1.5 / SIZE)


def test_a_point_behind_the_camera_has_no_pixel(scene):
    model, data, _ = scene
    axes = np.array(ORBIT.lookat) + [10, -6, 8]
    assert np.isnan(project(camera_matrix(model, data, ORBIT), axes)).all()


def test_a_silhouette_ignores_what_stands_before_it():
    model = mujoco.MjModel.from_xml_string("""<mujoco><worldbody>
      <geom name="box" type="box" size=".2 .2 .2"/> <geom name="ball" size=".08" pos="0 -.6 0"/>
    </worldbody></mujoco>""")
    data, ids = mujoco.MjData(model), np.array([model.geom("box").id])
    mujoco.mj_forward(model, data)
    view, camera = (
        Renderer(model, SIZE),
        Orbit(lookat=(0, 0, 0), distance=1.5, azimuth=90, elevation=0),
    )
    seen, hidden = [
        (view.labels(data, camera) == model.geom(name).id).sum() for name in ("box", "ball")
    ]
    assert min(seen, hidden) > 0
    assert view.silhouette(data, camera, ids) == seen + hidden
    assert (view.labels(data, camera) == ids[0]).sum() == seen  # and the scene is as it was
    view.close()


def test_masks_have_tight_boxes():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:8] = True
    np.testing.assert_allclose(mask_box(mask), [0.2, 0.2, 0.5, 0.4])
    assert np.isnan(mask_box(np.zeros((4, 4), bool))).all()


def test_coarse_meshes_look_alike_and_collide_the_same():
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ring = [f"{0.2 * np.cos(a)} {0.2 * np.sin(a)} {z}" for z in (0, 0.1) for a in angles]
    xml = f"""<mujoco><asset><mesh name="drum" vertex="{" ".join(ring)}"/></asset>
              <worldbody><geom type="mesh" mesh="drum"/></worldbody></mujoco>"""
    sizes, vertices, faces = [], [], []
    for cell in (None, 0.01):
        model = mujoco.MjModel.from_xml_string(xml)
        if cell:
            coarsen_mesh(model, 0, cell)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        view = Renderer(model, 128)
        sizes.append((view.labels(data, ORBIT) == 0).sum())
        vertices.append(model.mesh_vert.copy())
        faces.append(model.mesh_facenum[0])
        view.close()
    assert faces[1] < faces[0] / 1.5
    assert abs(sizes[1] - sizes[0]) < 0.03 * sizes[0]
    np.testing.assert_array_equal(*vertices)
