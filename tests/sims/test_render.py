"""Projection, segmentation and simplified meshes, in small scenes without a simulator."""

import mujoco
import numpy as np
import pytest

from etcvla.etc.annotation import project
from etcvla.sims.conditions import Orbit
from etcvla.sims.oracle import mask_box
from etcvla.sims.render import Renderer, coarsen_mesh

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
OCCLUDED_XML = """
<mujoco>
  <worldbody>
    <geom name="box" type="box" size=".2 .2 .2"/>
    <geom name="ball" size=".08" pos="0 -.6 0"/>
  </worldbody>
</mujoco>
"""
ORBIT = Orbit(lookat=(0, 0, 0.1), distance=1.2, azimuth=150, elevation=-30)


def _load(xml):
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.fixture(scope="module")
def scene():
    """A scene of two geoms and a site, and its renderer."""
    model, data = _load(XML)
    renderer = Renderer(model, data, SIZE)
    yield model, data, renderer
    renderer.close()


@pytest.mark.parametrize("camera", [ORBIT, "fixed"])
def test_projected_points_match_the_segmentation(scene, camera):
    model, data, renderer = scene
    labels = renderer.labels(camera)
    matrix = renderer.camera_matrix(camera)
    positions = {
        model.geom("ball").id: data.geom("ball").xpos,
        model.geom("far").id: data.geom("far").xpos,
        model.ngeom + model.site("marker").id: data.site("marker").xpos,
    }
    for label, position in positions.items():
        box = mask_box(labels == label)
        centre = (box[:2] + box[2:]) / 2
        np.testing.assert_allclose(project(matrix, position), centre, atol=1.5 / SIZE)


def test_point_behind_the_camera_projects_to_nan(scene):
    _, _, renderer = scene
    behind = np.array(ORBIT.lookat) + [10, -6, 8]
    assert np.isnan(project(renderer.camera_matrix(ORBIT), behind)).all()


def test_silhouette_ignores_occlusion():
    model, data = _load(OCCLUDED_XML)
    renderer = Renderer(model, data, SIZE)
    camera = Orbit(lookat=(0, 0, 0), distance=1.5, azimuth=90, elevation=0)
    box = model.geom("box").id
    labels = renderer.labels(camera)
    num_box = (labels == box).sum()
    num_ball = (labels == model.geom("ball").id).sum()
    assert num_box > 0
    assert num_ball > 0
    assert renderer.silhouette(camera, np.array([box])) == num_box + num_ball
    assert (renderer.labels(camera) == box).sum() == num_box  # the scene is unchanged
    renderer.close()


def test_mask_boxes_are_tight():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:8] = True
    np.testing.assert_allclose(mask_box(mask), [0.2, 0.2, 0.5, 0.4])
    assert np.isnan(mask_box(np.zeros((4, 4), bool))).all()


def _drum_xml():
    """Return a scene with a finely divided cylinder."""
    vertices = []
    for z in (0, 0.1):
        for angle in np.linspace(0, 2 * np.pi, 200, endpoint=False):
            vertices.append(f"{0.2 * np.cos(angle)} {0.2 * np.sin(angle)} {z}")
    return f"""<mujoco><asset><mesh name="drum" vertex="{" ".join(vertices)}"/></asset>
               <worldbody><geom type="mesh" mesh="drum"/></worldbody></mujoco>"""


def test_coarse_mesh_has_fewer_faces_but_the_same_shape_and_vertices():
    fine, data = _load(_drum_xml())
    coarse, _ = _load(_drum_xml())
    coarsen_mesh(coarse, 0, 0.01)
    sizes = []
    for model in (fine, coarse):
        renderer = Renderer(model, data, 128)
        sizes.append((renderer.labels(ORBIT) == 0).sum())
        renderer.close()
    assert coarse.mesh_facenum[0] < fine.mesh_facenum[0] / 1.5
    assert abs(sizes[1] - sizes[0]) < 0.03 * sizes[0]
    np.testing.assert_array_equal(coarse.mesh_vert, fine.mesh_vert)
